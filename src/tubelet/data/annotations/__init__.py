"""Official annotation files of published data sets, read as manifests."""
