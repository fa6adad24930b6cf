"""What a pass is, which are installed, and running them one after the other."""
