# The images that users want. `docker buildx bake` builds the default, `docker buildx bake t2v` one,
# `docker buildx bake all` every variant. What each holds and needs is in the README, under Image.

variable "IMAGE" {
  default = "wan-worker"
}

variable "VERSION" {
  default = "dev"
}

target "_worker" {
  platforms = ["linux/amd64"]
  # From the environment of the builder; an unset one is an anonymous download.
  secret = ["id=HF_TOKEN,env=HF_TOKEN"]
}

# Written by `make docs`: groups and targets.
group "default" {
  targets = ["t2v-i2v"]
}

group "all" {
  targets = ["t2v", "i2v", "t2v-i2v", "slim"]
}

target "t2v" {
  inherits = ["_worker"]
  args     = { MODELS = "wan2.1-t2v-1.3b" }
  tags     = ["${IMAGE}:${VERSION}-t2v", "${IMAGE}:t2v"]
}

target "i2v" {
  inherits = ["_worker"]
  args     = { MODELS = "wan2.1-i2v-14b-480p" }
  tags     = ["${IMAGE}:${VERSION}-i2v", "${IMAGE}:i2v"]
}

target "t2v-i2v" {
  inherits = ["_worker"]
  args     = { MODELS = "wan2.1-t2v-1.3b wan2.1-i2v-14b-480p" }
  tags     = ["${IMAGE}:${VERSION}-t2v-i2v", "${IMAGE}:t2v-i2v", "${IMAGE}:${VERSION}", "${IMAGE}:latest"]
}

# No weights: they come from a network volume.
target "slim" {
  inherits = ["_worker"]
  args     = { MODELS = "" }
  tags     = ["${IMAGE}:${VERSION}-slim", "${IMAGE}:slim"]
}
# End.
