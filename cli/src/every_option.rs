//! Every option of every command, from the definition that clap has of them: none makes the program panic, and none is ignored.
use crate::args::Cli;
use crate::command_line::{self, Program};

const PLAYS: &str = "every_option::the_program_is_played";

/// The program in a process of its own.
#[test]
fn the_program_is_played() {
    command_line::play(crate::program);
}

fn arguments(command: &str) -> Vec<clap::Arg> {
    let definition = Cli::definition();
    let command = definition.find_subcommand(command).expect("there is such a command");
    command.get_arguments().cloned().collect()
}

/// `words` in front of every line.
fn behind(words: &[&str], lines: &[Vec<String>]) -> Vec<Vec<String>> {
    lines.iter().map(|line| words.iter().map(|word| (*word).to_owned()).chain(line.iter().cloned()).collect()).collect()
}

/// Every option with every kind of value, alone and in company.
#[test]
fn no_command_line_makes_it_panic() {
    let program = Program::new(PLAYS, "cli-options");
    let mut lines = vec![vec![], vec!["no-such-command".to_owned()], vec!["--version".to_owned()]];
    for (command, mixtures) in [("plan", 300), ("bytes", 40)] {
        let singles = command_line::singles(&arguments(command));
        lines.extend(behind(&[command], &singles));
        lines.extend(behind(&[command], &command_line::mixtures(&singles, mixtures, 1)));
        // Several domains have more to go wrong.
        if command == "plan" {
            let network = ["plan", "--nic", "cx7", "--domains", "4,2,4", "--tokens", "64"];
            lines.extend(behind(&network, &command_line::mixtures(&singles, mixtures, 2)));
        }
    }
    let preflight = command_line::singles(&arguments("preflight"));
    lines.extend(behind(&["preflight"], &preflight[..4]));
    command_line::for_each(&lines, |line| drop(program.run_well(line)));
}

#[test]
fn no_option_is_ignored() {
    let program = Program::new(PLAYS, "cli-effects");
    let write = |name: &str, text: &str| std::fs::write(program.folder.join(name), text).expect("the folder takes it");
    write("mine.toml", "[gpu]\nname = 'Mine'\nnvlink_link = 7.5\nmemory = 1e11\n");
    write("histogram", &"1 2 3 4 ".repeat(64));
    let effective = |flag: &str| {
        let value = match flag {
            "--gpu" => "h100",
            "--nic" => "cx8",
            "--hardware" => "mine.toml",
            "--ranks" => "4",
            "--per-node" => "4",
            "--domains" => "4,4,8",
            "--ranks-per-gpu" => "2",
            "--nics-per-gpu" => "2",
            "--tokens" => "100",
            "--hidden" => "4096",
            "--experts" => "128",
            "--top-k" => "4",
            "--format" => "fp8",
            "--scales" => "column-major",
            "--layout" => "expand",
            "--alignment" => "128",
            "--capacity" => "30000",
            "--row-slots" => "2",
            // Each of these needs the other.
            "--groups" => "8 --group-limit 4",
            "--group-limit" => "2 --groups 4",
            "--histogram" => "histogram",
            "--imbalance" => "1.5",
            "--protocol" => "deepep-v2",
            "--num-sms" => "30",
            "--allocated-qps" => "3",
            "--many-sms" | "--figures" | "--json" => "",
            "--simulate" => "zipf:0.5",
            "--seed" => "7",
            "--skew" => "100",
            "--straggler" => "1:3",
            "--sweep" => "tokens=16,32",
            "--plot" => "curves.svg",
            "--root" => "/nowhere",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let bases = [
        "plan",
        "plan --format fp8",
        "plan --json",
        "plan --nic cx7",
        "plan --nic cx7 --ranks 16 --per-node 8",
        "plan --nic cx7 --ranks 16 --per-node 8 --json",
        "plan --nic cx7 --ranks 16 --per-node 8 --tokens 64 --simulate",
        "plan --nic cx7 --domains 8,4 --simulate gate --seed 2 --tokens 64 --json",
        "plan --protocol deepep-v2",
        "plan --protocol deepep-v2 --nic cx7 --ranks 64",
        "plan --protocol deepep-v2 --many-sms",
        "plan --protocol deepep-v2 --num-sms 24 --nic cx7 --ranks 16",
        "plan --layout expand",
        "plan --layout slab --tokens 512",
        "plan --capacity 31000",
        "plan --groups 16 --group-limit 8",
        "plan --histogram histogram",
        "plan --gpu gb200 --ranks 72 --per-node 72",
        "plan --ranks-per-gpu 4",
        "plan --figures",
        "plan --figures --nic cx7",
        "plan --sweep ranks=4..16 --nic cx7",
        "plan --sweep tokens=64,4096",
        // With --json, what is drawn is seen in no output.
        "plan --sweep hidden=2048,7168 --json --plot curves.svg",
        "plan --sweep top-k=2,8 --simulate --tokens 64",
    ];
    command_line::nothing_is_ignored(&program, &arguments("plan"), &bases, effective, str::to_owned);

    assert!(program.folder.join("curves.svg").exists(), "--plot with --json draws nothing");

    let effective = |flag: &str| match flag {
        "--num-sms" => Some("30".to_owned()),
        "--capacity" => Some("3000".to_owned()),
        "--routing-slots" => Some("3".to_owned()),
        "--returned-weights" | "--fp8-combine" | "--expert-statistics" | "--graphs-across-masks" => Some(String::new()),
        "--expert-index" => Some("8".to_owned()),
        flag => effective(flag),
    };
    let bases = ["bytes", "bytes --format fp8", "bytes --ranks 64", "bytes --layout expand", "bytes --layout slab"];
    command_line::nothing_is_ignored(&program, &arguments("bytes"), &bases, effective, str::to_owned);
    // What was looked at is printed; where, only an option says. Neither has a part in the other.
    let output = |text: &str| text.lines().filter(|line| !line.contains(" s; all")).collect::<Vec<_>>().join("\n");
    command_line::nothing_is_ignored(&program, &arguments("preflight"), &["preflight"], effective, output);
}
