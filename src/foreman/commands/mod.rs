//! The verbs: one file and one line each. A file holds the arguments, their help with an example, the run and the
//! shape of its JSON document.

use super::desk::{Desk, Verb};
use super::exit::Answer;

mod moved;

/// Declares the modules of the verbs, the subcommands clap knows, and the way from one to its `run`.
macro_rules! verbs {
    ($($module:ident => $verb:ident),+ $(,)?) => {
        $(pub mod $module;)+

        #[derive(clap::Subcommand)]
        pub enum Command {
            $($verb($module::Args),)+
        }

        /// Every verb by its module name, in the order of the help.
        pub const VERBS: &[&str] = &[$(stringify!($module)),+];

        impl Verb for Command {
            fn run(&self, desk: &mut Desk) -> Answer {
                match self {
                    $(Command::$verb(args) => args.run(desk),)+
                }
            }
        }
    };
}

verbs! {
    init => Init,
    enqueue => Enqueue,
    seed => Seed,
    check => Check,
    plan => Plan,
    run => Run,
    demo => Demo,
    status => Status,
    doctor => Doctor,
    list => List,
    show => Show,
    explain => Explain,
    wait => Wait,
    retry => Retry,
    defer => Defer,
    cancel => Cancel,
    reorder => Reorder,
    pause => Pause,
    resume => Resume,
    recover => Recover,
    tail => Tail,
    events => Events,
    logs => Logs,
    storage => Storage,
    gc => Gc,
    pin => Pin,
    unpin => Unpin,
    demote => Demote,
    assay => Assay,
    inspect => Inspect,
    verify => Verify,
    frontier => Frontier,
    stages => Stages,
    families => Families,
    runners => Runners,
    completions => Completions,
    man => Man,
}
