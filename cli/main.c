/* kiln: the person's command. The table of commands and the way into one. One thread. */
#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "base/log.h"
#include "cli/args.h"

#define INPUT_USAGE "FILE… [options]"

const struct cli_command cli_commands[] = {
    {"render", INPUT_USAGE, "render prompts into a folder",
     "Renders every prompt of the files (.txt: a prompt a line, with A1111's --steps 30 --seed 7 …; .jsonl; "
     ".csv and .tsv "
     "with a header; - for standard input) and of -p into a folder: images/, manifest.jsonl, index.html (a "
     "gallery), batch.json. "
     "Uses the farm that is up, else starts a private one and ends it. What the folder has already is not "
     "rendered "
     "again: after an interruption the same command goes on.",
     "  kiln render prompts.txt -o pictures\n"
     "  kiln render -p \"a red circle above a blue square\" --images 8 --seed 7\n"
     "  kiln render prompts.csv --model ~/sd15 --steps 30 --sampler \"DPM++ 2M\" --schedule karras --workers "
     "1\n"
     "  head -5 prompts.txt | kiln render - --input-format txt -o try\n",
     CLI_G_INPUT | CLI_G_SUBMIT | CLI_G_OUT | CLI_G_FARM | CLI_G_START | CLI_G_JSON, 0, -1, cmd_render},
    {"up", "[options]", "start a farm that stays",
     "Starts Redis, the coordinator and workers for this machine, and leaves behind what watches them and "
     "starts again what "
     "dies. Returns when the workers are there, and prints the endpoint.",
     "  kiln up\n"
     "  kiln up --workers 2 --models ~/models\n"
     "  kiln up --workers 0 --listen tcp://0.0.0.0:5600 --insecure\n",
     CLI_G_FARM | CLI_G_START | CLI_G_UP | CLI_G_MODEL | CLI_G_JSON, 0, 0, cmd_up},
    {"down", "[options]", "end that farm",
     "Ends the farm: the workers finish or hand back what they render, then the coordinator and Redis end. "
     "Batches stay, and go on with "
     "the next kiln up.",
     "  kiln down\n  kiln down --now\n", CLI_G_FARM | CLI_G_NOW, 0, 0, cmd_down},
    {"submit", INPUT_USAGE, "hand in prompts, get an id",
     "Like render, but returns as soon as the farm has the batch on disk. Prints the id alone on standard "
     "output.",
     "  id=$(kiln submit prompts.txt) && kiln wait $id && kiln fetch $id -o pictures\n",
     CLI_G_INPUT | CLI_G_SUBMIT | CLI_G_FARM, 0, -1, cmd_submit},
    {"status", "[ID…]", "how batches stand",
     "Shows the batches of the farm, or those asked for. An id may be shortened.",
     "  kiln status\n  kiln status 3f2a --json\n", CLI_G_FARM | CLI_G_JSON, 0, -1, cmd_status},
    {"wait", "ID… [options]", "wait until batches have ended",
     "Waits until every image of the batches is done, failed or cancelled. Status 0 when all are done, 2 "
     "when not.",
     "  kiln wait 3f2a\n", CLI_G_FARM | CLI_G_TIMEOUT | CLI_G_JSON, 1, -1, cmd_wait},
    {"fetch", "ID [-o DIR]", "get a batch's pictures",
     "Collects what is there of a batch into a folder, at any time and from any machine that reaches the "
     "farm. What the folder has "
     "already is not fetched again.",
     "  kiln fetch 3f2a -o pictures\n", CLI_G_FARM | CLI_G_OUT | CLI_G_JSON, 1, 1, cmd_fetch},
    {"cancel", "ID…", "stop batches", "What is not rendered yet ends as cancelled.", "  kiln cancel 3f2a\n",
     CLI_G_FARM, 1, -1, cmd_cancel},
    {"pause", "ID…", "hold batches", "What is not handed out yet waits for kiln resume.",
     "  kiln pause 3f2a\n", CLI_G_FARM, 1, -1, cmd_pause},
    {"resume", "ID…", "let paused batches go on", NULL, "  kiln resume 3f2a\n", CLI_G_FARM, 1, -1,
     cmd_resume},
    {"retry", "ID…", "render failed images again", NULL, "  kiln retry 3f2a\n", CLI_G_FARM, 1, -1, cmd_retry},
    {"rm", "ID…", "forget batches that have ended",
     "The farm forgets batches that have ended, and their pictures leave its folder. What was fetched stays "
     "where it is.",
     "  kiln rm 3f2a\n", CLI_G_FARM, 1, -1, cmd_rm},
    {"workers", "[options]", "the workers and what they do", NULL, "  kiln workers\n  kiln workers --json\n",
     CLI_G_FARM | CLI_G_JSON, 0, 0, cmd_workers},
    {"drain", "WORKER… [options]", "give a worker no more work",
     "The worker finishes what it renders, hands back the rest and gets nothing more.",
     "  kiln drain worker-1\n  kiln drain gpu3 --exit\n", CLI_G_FARM | CLI_G_EXIT, 1, -1, cmd_drain},
    {"top", "[options]", "watch the farm",
     "A live screen: batches with their progress, workers with what they render. q ends it. With --json, or "
     "without a terminal: one snapshot.",
     "  kiln top\n  kiln top --json\n", CLI_G_FARM | CLI_G_JSON, 0, 0, cmd_top},
    {"verify", "DIR…", "check a folder of pictures",
     "Checks from the files alone that a folder holds what was asked for: a line an image, a file a line, "
     "digests, and that every "
     "picture decodes to the pixels that were rendered.",
     "  kiln verify pictures\n", CLI_G_JSON, 1, -1, cmd_verify},
    {"doctor", "[options]", "check this machine",
     "Says whether this machine has what a farm needs: Redis, the programs, the model, memory, room on the "
     "disk; "
     "and whether the farm is up. Status 2 when something is missing.",
     "  kiln doctor\n", CLI_G_FARM, 0, 0, cmd_doctor},
    {0},
};

int main(int argc, char **argv) {
    kn_fs_standard();
    kn_log_init("kiln", KN_LOG_ERROR);
    if (argc < 2) {
        cli_help();
        return CLI_BAD_INPUT;
    }
    const char *name = argv[1];
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        puts("kiln " KILN_VERSION);
        return CLI_DONE;
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        const struct cli_command *about = argc > 2 ? cli_command_find(argv[2]) : NULL;
        if (about)
            cli_help_command(about);
        else
            cli_help();
        return CLI_DONE;
    }
    const struct cli_command *cmd = cli_command_find(name);
    if (!cmd) {
        const char *near = cli_command_suggest(name);
        if (near)
            cli_say("%s: unknown command, did you mean %s?", name, near);
        else
            cli_say("%s: unknown command; see kiln --help", name);
        return CLI_BAD_INPUT;
    }
    static struct cli_options options; /* large */
    struct kn_err err = {0};
    int rc = cli_parse(cmd, argc - 1, argv + 1, &options, &err);
    if (rc == 1) {
        cli_help_command(cmd);
        return CLI_DONE;
    }
    if (rc) {
        cli_say("%s", err.text);
        return CLI_BAD_INPUT;
    }
    return cmd->run(&options);
}
