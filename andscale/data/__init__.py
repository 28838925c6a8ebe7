"""Images in: raw data sets, WebDataset shards and their catalogue, batches, augmentation."""
