"""Fixed feature networks: pooled feature vectors for metrics, feature maps for perceptual distances."""
