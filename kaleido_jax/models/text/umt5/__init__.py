"""UMT5: the multilingual T5 whose every layer has its own relative-position table; Wan's text encoder."""
