# cli/: the person's command.
kn_unit_test(NAME cli.args SOURCES cli_args.c LIBS kiln_cli)
kn_unit_test(NAME cli.client SOURCES cli_client.c LIBS kiln_cli)
kn_unit_test(NAME cli.farmdir SOURCES cli_farmdir.c LIBS kiln_cli)
kn_unit_test(NAME cli.size SOURCES cli_size.c LIBS kiln_cli)
kn_unit_test(NAME cli.names SOURCES cli_names.c LIBS kiln_cli)
kn_unit_test(NAME cli.submission SOURCES cli_submission.c LIBS kiln_cli)
kn_unit_test(NAME cli.text SOURCES cli_text.c LIBS kiln_cli)
kn_unit_test(NAME cli.folder SOURCES cli_folder.c LIBS kiln_cli)
kn_unit_test(NAME cli.verify SOURCES cli_verify.c LIBS kiln_cli PkgConfig::ZLIB)
kn_unit_test(NAME cli.top SOURCES cli_top.c LIBS kiln_cli)
foreach(program test-cli-folder test-cli-verify) # a farm that is nothing but a folder
  target_link_options(${program} PRIVATE -Wl,--wrap=client_welcome,--wrap=client_fetch)
endforeach()
