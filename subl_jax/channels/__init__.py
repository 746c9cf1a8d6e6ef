"""What teachers write and what of it is kept, one file a channel."""
