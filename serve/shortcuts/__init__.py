"""What a model may go by other than the lungs: burnt-in words, borders, the source of an image."""
