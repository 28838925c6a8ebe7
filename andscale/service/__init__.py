"""The neighbourhood service: what is near this sample, these vectors, this image, over one committed round."""
