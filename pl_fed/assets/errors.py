"""What can go wrong between the name of a model or data set and its files."""


class AssetNotFoundError(FileNotFoundError):
    """Raised when a name is neither on this machine, nor on a reachable hub, nor packaged."""


class AssetFetchError(RuntimeError):
    """Raised when a registry client is missing or fails, or when a package cannot be unpacked or converted."""


class AssetHashError(AssetFetchError):
    """Raised when a fetched file is not, byte for byte, the one that the catalogue describes."""
