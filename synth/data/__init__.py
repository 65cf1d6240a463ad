"""Normal images: where they lie, how they are read, which pixels are the product."""
