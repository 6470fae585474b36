"""Who looks at clips: protocols, classical detectors without weights, models of transformers, endpoints."""
