"""The one error of whatever reads an image."""


class BadImage(Exception):
    """These bytes are no image that may enter a shard; the message is the reason."""
