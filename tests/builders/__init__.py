"""What several test modules build: requests, plans, pipelines, pictures, files. No fixtures."""
