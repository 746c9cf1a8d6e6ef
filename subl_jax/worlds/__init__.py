"""What experiments are made of: model × channel × traits, one file a world."""
