"""What lies on disk or in an object store: finished nodes, whole files, retries."""
