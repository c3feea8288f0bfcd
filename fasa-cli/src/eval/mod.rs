//! One harness for every comparison: any task, any methods at equal budgets, one prefill for all of them.
//!
//! | module | what it holds |
//! |---|---|
//! | [`spec`] | a method with its settings, as it is written on the command line |
//! | [`contender`] | the same, ready to run |
//! | [`profiles`] | the profile that a method needs: given, shipped, or calibrated now |
//! | [`suite`] | what is asked, question by question |
//! | [`agreement`] | what a method chooses, compared with true attention |
//! | [`question`] | one question, put to one method |
//! | [`run`] | all questions to all methods, over threads |
//! | [`record`] | results in a file of JSON lines, which a later run continues |
//! | [`charts`] | the same as charts |
//! | [`summary`] | scores per task, method and budget |

pub mod agreement;
pub mod charts;
pub mod contender;
pub mod profiles;
pub mod question;
pub mod record;
pub mod run;
pub mod spec;
pub mod suite;
pub mod summary;
