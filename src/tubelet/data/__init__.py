"""From files to batches: lists and scans, frame-exact decoding, clips, and their order."""
