"""What the files of a run say: the status document and the table of reconfigurations. Reads only."""
