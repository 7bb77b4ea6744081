"""A RunPod serverless worker for Alibaba's Wan video models. Start reading at job.py."""
