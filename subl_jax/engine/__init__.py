"""From a sweep to stored results: plan, programs, lanes, batches. The only room that knows lanes."""
