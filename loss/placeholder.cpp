// replaced by this folder's first unit
