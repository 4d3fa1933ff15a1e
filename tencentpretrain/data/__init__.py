"""From corpus files to batches: readers, the token store, processors, masking, loading."""
