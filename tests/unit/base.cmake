# base/: what everyone shares.
kn_unit_test(NAME base.basics SOURCES base_basics.c LIBS kn_base)
kn_unit_test(NAME base.hash SOURCES base_hash.c LIBS kn_base)
kn_unit_test(NAME base.map SOURCES base_map.c LIBS kn_base)
kn_unit_test(NAME base.fs SOURCES base_fs.c LIBS kn_base)
kn_unit_test(NAME base.spec SOURCES base_spec.c LIBS kn_base)
kn_unit_test(NAME base.prompts SOURCES base_prompts.c LIBS kn_base)
kn_unit_test(NAME base.torture SOURCES base_torture.c LIBS kn_base)
target_link_options(test-base-torture PRIVATE -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=strdup)
