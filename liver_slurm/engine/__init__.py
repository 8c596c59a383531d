"""What trains: the engine that builds a model in a layout, and the data that it trains on."""
