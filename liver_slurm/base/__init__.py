"""Ground that everything stands on: errors and exit codes, files of JSON lines, network addresses, the query budget."""
