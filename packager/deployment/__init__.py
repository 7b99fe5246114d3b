"""`package export`: a bundle → the layout that another server runs. One file for each target."""
