"""What whitening costs in time and memory, in single layers and in whole models."""
