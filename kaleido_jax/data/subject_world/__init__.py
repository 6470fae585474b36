"""The world as a tensorflow-datasets data set (`tfds` finds the builder by the names of this folder and its module)."""
