set(KX_MODEL_SOURCES
  models/blocks.c
  models/lanes.c
  models/load.c
  models/text.c
  models/unet.c
  models/vae.c)
