"""The HDF5 layout of a data set, version 1. No other module knows it.

    images       uint8 [N, H, W, 3], contiguous and uncompressed    (store "raw"; can be memory-mapped)
                 or variable-length uint8 [N], one encoded file each (store "png", "webp" or "jpeg")
    labels       int64 [N]
    class_names  UTF-8 [K], class id = index
    sources      UTF-8 [N], path below the folder that the images came from

Rows are ordered by class, then by source path. The attributes of the root group are the fields of `Header`.
"""

SCHEMA_VERSION = 1
STORES = ("raw", "png", "webp", "jpeg")
