"""What training runs have given: read, compared, drawn; and runs made to be compared."""
