"""What two runs, or sets of runs, have in common and where they differ; and a page of runs to read in a browser."""
