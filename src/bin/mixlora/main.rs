//! The command line program: one file per subcommand. Results go to stdout, progress to stderr.

#[cfg(feature = "tokenizer")]
mod analyse;
mod bench;
#[cfg(feature = "tokenizer")]
mod chat;
mod completions;
#[cfg(feature = "tokenizer")]
mod config;
#[cfg(feature = "tokenizer")]
mod config_schema;
#[cfg(feature = "tokenizer")]
mod config_settings;
#[cfg(feature = "tokenizer")]
mod data_check;
#[cfg(feature = "tokenizer")]
mod data_convert;
#[cfg(feature = "tokenizer")]
mod data_make;
#[cfg(feature = "tokenizer")]
mod data_show;
#[cfg(feature = "tokenizer")]
mod data_stats;
#[cfg(feature = "tokenizer")]
mod data_text;
mod device_args;
mod doctor;
#[cfg(feature = "tokenizer")]
mod eval;
#[cfg(feature = "tokenizer")]
mod export;
#[cfg(feature = "tokenizer")]
mod generate;
mod inspect;
#[cfg(feature = "images")]
mod inspect_image;
mod key_value;
mod man;
#[cfg(feature = "tokenizer")]
mod measured;
#[cfg(feature = "tokenizer")]
mod merge;
mod methods;
#[cfg(feature = "tokenizer")]
mod model_args;
mod model_path;
mod models;
mod ops_list;
mod ops_test;
mod out;
#[cfg(feature = "tokenizer")]
mod plan;
mod plot;
mod progress;
#[cfg(feature = "tokenizer")]
mod prune;
#[cfg(feature = "tokenizer")]
mod quickstart;
#[cfg(feature = "tokenizer")]
mod settings;
#[cfg(feature = "tokenizer")]
mod signals;
#[cfg(feature = "tokenizer")]
mod study;
mod table;
#[cfg(feature = "tokenizer")]
mod train;
#[cfg(feature = "tokenizer")]
mod train_args;
#[cfg(feature = "gpu")]
mod tune;
mod verify;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::any::TypeId;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mixlora::Allocator = mixlora::Allocator;

/// Fine-tune frozen models with mixtures of low-rank factors.
#[derive(Parser)]
#[command(name = "mixlora", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "\
Example: mixlora quickstart

Exit codes: 0 fine, 1 a check failed, 2 wrong usage, 3 bad input, 4 no device or a device error, 5 out of memory, \
6 training diverged, 130 and 143 stopped by Ctrl-C and SIGTERM.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fine-tune a real model on a bundled set, and show what it learned.
    #[cfg(feature = "tokenizer")]
    Quickstart(quickstart::Args),
    /// Show the machine's devices, and test that they compute the right numbers.
    Doctor(doctor::Args),
    /// List the operations, or test them.
    #[command(subcommand)]
    Ops(Ops),
    /// Check, show, count and make training data.
    #[cfg(feature = "tokenizer")]
    #[command(subcommand)]
    Data(Data),
    /// Train an adapter on a frozen model.
    #[cfg(feature = "tokenizer")]
    Train(Box<train_args::TrainArgs>),
    /// Estimate the memory of a training run before anything is loaded.
    #[cfg(feature = "tokenizer")]
    Plan(Box<plan::Args>),
    /// Let a model, with or without an adapter, answer a prompt.
    #[cfg(feature = "tokenizer")]
    Generate(generate::Args),
    /// Talk with a model, with or without an adapter.
    #[cfg(feature = "tokenizer")]
    Chat(chat::Args),
    /// Measure loss, perplexity, answers and multiple choice on data; compare adapters.
    #[cfg(feature = "tokenizer")]
    Eval(eval::Args),
    /// Compare methods over learning rates and seeds on one data set, with intervals.
    #[cfg(feature = "tokenizer")]
    Study(study::Args),
    /// Look at what an adapter does with its tasks: interference of their gradients, choices of its routers.
    #[cfg(feature = "tokenizer")]
    #[command(subcommand)]
    Analyse(analyse::Analyse),
    /// Add a plain LoRA to the weights of its model.
    #[cfg(feature = "tokenizer")]
    Merge(merge::Args),
    /// Drop rows of an adapter's pools that data seldom choose.
    #[cfg(feature = "tokenizer")]
    Prune(prune::Args),
    /// Write a plain LoRA for other programs.
    #[cfg(feature = "tokenizer")]
    Export(export::Args),
    /// Say what a model or adapter file holds, or what a model sees of a picture.
    Inspect(inspect::Args),
    /// Draw the losses, learning rates and gradient norms of runs.
    Plot(plot::Args),
    /// Print, describe or check settings of a run.
    #[cfg(feature = "tokenizer")]
    #[command(subcommand)]
    Config(config::Config),
    /// List the families of models that can be used.
    Models(models::Args),
    /// List the methods: what they train, and what their routers learn from.
    Methods(methods::Args),
    /// Measure speed: of the device, operations, layers, training, models.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Measure which kernels are best on this machine's GPU, and use them from now on.
    #[cfg(feature = "gpu")]
    Tune(tune::Args),
    /// Replay reference files: an adapted layer, forward and backward, against stored values.
    Verify(verify::Args),
    /// Print a script that completes commands and options in a shell.
    Completions(completions::Args),
    /// Write a manual page for each command.
    Man(man::Args),
}

#[derive(Subcommand)]
enum Ops {
    /// List every operation with its formula, shaders and variants.
    List(ops_list::Args),
    /// Compare every operation with its f64 reference, forward and backward.
    Test(ops_test::Args),
}

#[cfg(feature = "tokenizer")]
#[derive(Subcommand)]
enum Data {
    /// Read every line and list all problems.
    Check(data_check::Args),
    /// Write samples of any format as lines of JSON with messages.
    Convert(data_convert::Args),
    /// Show samples as the model reads them, with the trained text marked.
    Show(data_show::Args),
    /// Count examples, tokens and trained tokens.
    Stats(data_stats::Args),
    /// Make a data set in parts that share no item, for comparing methods.
    #[command(subcommand)]
    Make(data_make::Make),
}

/// The reason why a command failed.
enum Failure {
    /// A check found something wrong; the report is on stdout.
    Check,
    /// The command line does not make sense.
    Usage(String),
    /// The library refused or failed.
    Library(mixlora::Error),
    /// The report could not be written.
    Stdout(std::io::Error),
    /// The run does not fit into memory; the report says what would.
    Memory,
    /// A signal of this number stopped the run after everything was saved.
    Signal(u8),
}

impl From<mixlora::Error> for Failure {
    fn from(error: mixlora::Error) -> Self {
        Failure::Library(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Stdout(error)
    }
}

impl Failure {
    /// Combines several errors into one failure: all but the last are printed at once.
    fn of_all(mut errors: Vec<mixlora::Error>) -> Self {
        let last = errors.pop();
        errors.iter().for_each(|error| out::note(&format!("error: {error}")));
        last.map_or(Failure::Check, Failure::Library)
    }

    /// Prints the error on stderr and returns the exit code.
    fn report(self) -> u8 {
        use mixlora::Error;
        let (text, code) = match self {
            Failure::Check => return 1,
            Failure::Memory => return 5,
            Failure::Signal(number) => return 128 + number,
            // The reader of the output has closed it.
            Failure::Stdout(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return 0,
            Failure::Stdout(error) => (format!("cannot write the report: {error}"), 3),
            Failure::Usage(text) => (text, 2),
            Failure::Library(error) => {
                let code = match error {
                    Error::NoAdapter(_)
                    | Error::BelowFloor { .. }
                    | Error::DeviceLost(_)
                    | Error::Shader { .. }
                    | Error::Gpu(_) => 4,
                    Error::OutOfMemory { .. } => 5,
                    Error::Diverged(_) => 6,
                    _ => 3,
                };
                (error.to_string(), code)
            }
        };
        out::note(&format!("error: {text}"));
        code
    }
}

/// The device of a `--device` option; a malformed name is wrong usage.
fn device(name: &str) -> Result<mixlora::Device, Failure> {
    mixlora::Device::parse(name).map_err(|error| match error {
        mixlora::Error::Config { .. } | mixlora::Error::Refused { .. } => {
            Failure::Usage(format!("--{error}"))
        }
        other => other.into(),
    })
}

/// Opens the device of a run's options with its threads and memory budget.
fn open_device(options: &mixlora::train::DeviceOptions) -> Result<mixlora::Device, Failure> {
    options.open().map_err(|error| match error {
        mixlora::Error::Config { .. } | mixlora::Error::Refused { .. } => {
            Failure::Usage(format!("--{error}"))
        }
        other => other.into(),
    })
}

/// Lets numeric options take negative numbers, so that the error explains the number instead of an unknown option.
fn take_negative_numbers(command: clap::Command) -> clap::Command {
    let numbers = [TypeId::of::<usize>(), TypeId::of::<u64>(), TypeId::of::<f32>(), TypeId::of::<f64>()];
    let command = command.mut_args(|arg| {
        let kind = arg.get_value_parser().type_id();
        let takes_a_number = arg.get_action().takes_values() && numbers.iter().any(|number| kind == *number);
        if takes_a_number { arg.allow_hyphen_values(true) } else { arg }
    });
    command.mut_subcommands(take_negative_numbers)
}

/// Silences panics of the tokenizer library, which are caught and reported as errors.
fn quiet_tokenizers() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|place| place.file().contains("tokenizers-")) {
            usual(panic);
        }
    }));
}

/// The program's commands and options.
fn command() -> clap::Command {
    take_negative_numbers(Cli::command())
}

fn main() -> ExitCode {
    quiet_tokenizers();
    let matches = command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match check_environment().and_then(|()| run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.report()),
    }
}

/// Checks the number of threads in the environment before the shared threads are started.
fn check_environment() -> Result<(), Failure> {
    let name = "RAYON_NUM_THREADS";
    let threads = std::env::var(name).ok().and_then(|text| text.parse().ok()).filter(|threads| *threads > 0);
    let checked = threads.map_or(Ok(()), mixlora::Device::check_threads);
    checked.map_err(|error| Failure::Usage(format!("{name}: {error}")))
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        #[cfg(feature = "tokenizer")]
        Command::Quickstart(args) => quickstart::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Ops(Ops::List(args)) => ops_list::run(&args),
        Command::Ops(Ops::Test(args)) => ops_test::run(&args),
        #[cfg(feature = "tokenizer")]
        Command::Data(Data::Check(args)) => data_check::run(&args),
        #[cfg(feature = "tokenizer")]
        Command::Data(Data::Convert(args)) => data_convert::run(&args),
        #[cfg(feature = "tokenizer")]
        Command::Data(Data::Show(args)) => data_show::run(&args),
        #[cfg(feature = "tokenizer")]
        Command::Data(Data::Stats(args)) => data_stats::run(&args),
        #[cfg(feature = "tokenizer")]
        Command::Data(Data::Make(make)) => data_make::run(&make),
        #[cfg(feature = "tokenizer")]
        Command::Train(args) => train::run(&args),
        #[cfg(feature = "tokenizer")]
        Command::Plan(args) => plan::run(&args),
        #[cfg(feature = "tokenizer")]
        Command::Generate(args) => generate::run(&args),
        #[cfg(feature = "tokenizer")]
        Command::Chat(args) => chat::run(&args),
        #[cfg(feature = "tokenizer")]
        Command::Eval(args) => eval::run(&args),
        #[cfg(feature = "tokenizer")]
        Command::Study(args) => study::run(&args),
        #[cfg(feature = "tokenizer")]
        Command::Analyse(command) => analyse::run(&command),
        #[cfg(feature = "tokenizer")]
        Command::Merge(args) => merge::run(&args),
        #[cfg(feature = "tokenizer")]
        Command::Prune(args) => prune::run(&args),
        #[cfg(feature = "tokenizer")]
        Command::Export(args) => export::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Plot(args) => plot::run(&args),
        #[cfg(feature = "tokenizer")]
        Command::Config(command) => config::run(&command),
        Command::Models(args) => models::run(&args),
        Command::Methods(args) => methods::run(&args),
        Command::Bench(bench) => bench::run(&bench),
        #[cfg(feature = "gpu")]
        Command::Tune(args) => tune::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}

#[cfg(test)]
mod tests {
    /// Only debug builds look at what commands are parsed with, completions and manual pages included.
    #[test]
    fn commands_are_declared_without_contradictions() {
        super::command().debug_assert();
    }
}
