/* The table of kiln's commands: the order is that of `kiln --help`. */
#include "cli/commands/commands.h"

#include <stdio.h>
#include <string.h>

#include "base/spec.h"

static const struct cli_command *const commands[] = {
    &cmd_render, &cmd_up,    &cmd_down,   &cmd_submit,   &cmd_status, &cmd_explain, &cmd_wait,    &cmd_fetch,
    &cmd_cancel, &cmd_pause, &cmd_resume, &cmd_priority, &cmd_retry,  &cmd_rm,      &cmd_workers, &cmd_drain,
    &cmd_token,  &cmd_keys,  &cmd_top,    &cmd_verify,   &cmd_doctor, NULL,
};

const char *command_suggest(const char *name) {
    const char *names[sizeof commands / sizeof commands[0]] = {0};
    for (size_t i = 0; commands[i]; i++) names[i] = commands[i]->name;
    return kn_suggest(name, names);
}

const struct cli_command *command_find(const char *name) {
    for (size_t i = 0; commands[i]; i++)
        if (strcmp(commands[i]->name, name) == 0) return commands[i];
    return NULL;
}

void commands_help(void) {
    printf("kiln " KILN_VERSION
           ": a file of prompts in, pictures out, on one machine or many\n\n"
           "usage: kiln COMMAND [options]\n\n");
    for (size_t i = 0; commands[i]; i++) printf("  %-9s %s\n", commands[i]->name, commands[i]->words);
    printf(
        "\nkiln COMMAND --help tells more. kiln --version prints the version.\n\n"
        "examples:\n"
        "  kiln render prompts.txt -o pictures      a private farm for this one batch\n"
        "  kiln up && kiln submit prompts.txt       a farm that stays\n"
        "\nexit status: 0 all done, 1 bad usage or input (nothing was started), 2 some images failed or\n"
        "verify found faults, 3 no farm there or no such id, 4 accepted, and a person's turn (the text says\n"
        "why), 5 no answer: not known whether it was done, ask again, 6 not allowed, 130 interrupted (the same\n"
        "command resumes)\n");
}
