"""Data construction: from raw videos to cross-paired training data.

Stages are plain functions of one clip (`stages`); Apache Beam runs them (`engine`). Nothing here needs Beam, OpenCV or
a model until a configuration asks for it.
"""
