"""Pictures and clips: reading them safely, fitting them to a video, writing videos and contact sheets.

Nothing here imports jax: a wrong file is told before anything expensive starts.
"""
