"""Language models that write the programs, and the adapter that is trained."""
