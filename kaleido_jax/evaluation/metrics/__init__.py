"""Scores as functions of arrays: no file, no network, no encoder is touched here."""
