from tests.sparse_or_dense import either_step

__all__ = ["either_step"]
