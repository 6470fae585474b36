"""From reference pictures and a prompt to a video; `kaleido_jax.Pipeline` and `kaleido generate` are this.

request.py checks what is asked for and references.py reads the pictures, both before a weight is read; pipeline.py runs
the model and generation.py is what it gives back; record.py keeps everything that is needed to make a video again;
outputs.py writes the files.
"""
