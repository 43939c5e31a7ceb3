"""Commands that encode whole sources of images: features as files, search, and near-duplicates."""
