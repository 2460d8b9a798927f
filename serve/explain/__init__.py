"""Heat maps: where in an image a network found what it says. Run: python -m serve explain"""
