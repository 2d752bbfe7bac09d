//! The page: well formed, safe, and as it was.

use super::*;
use crate::bench::rounds::{Percentiles, Round};
use crate::bench::{Config, Machine, Rate};

const GOLDEN: &str = include_str!("golden.html");

fn summary(rate: f64) -> Summary {
    let point = |n: u32| crate::bench::recorder::Point {
        at: f64::from(n) / 10.0,
        messages_per_second: rate * (1.0 + f64::from(n % 3) / 10.0),
        p50_us: Some(400),
        p99_us: (n != 2).then_some(2_000),
    };
    Summary {
        messages_per_second: rate,
        bytes_per_second: rate * 1024.0,
        messages: 1_000_000,
        acks: 10_000,
        cpu_ns_per_message: Some(900.4),
        memory_bytes: Some(50_000_000),
        latency_us: Percentiles {
            p50: 400,
            p90: 900,
            p99: 2_000,
            p999: 5_000,
            p9999: 9_000,
            max: 9_500,
        },
        distribution: vec![(0.0, 90), (50.0, 400), (90.0, 900), (99.0, 2_000), (99.9, 5_000)],
        series: (0..5).map(point).collect(),
    }
}

fn run() -> Run {
    let config: Config = serde_json::from_value(serde_json::json!({
        "what": "send", "server": null, "payload": 1024, "batch": 100, "in_flight": 32,
        "topics": 1, "queues": 1, "distribution": "uniform", "producers": 1, "keys": 0,
        "flush": "async", "compression": "none", "rate": "highest", "fill": 1, "duration": "2s", "warm_up": "1s",
        "rounds": 1, "control": true,
    }))
    .unwrap();
    assert_eq!(config.rate, Rate::Highest);
    let round = |void| Round {
        subject: vec![800_000.0, 820_000.0],
        control: vec![1_200_000.0, 1_210_000.0],
        ratio: Some(0.672),
        void,
    };
    Run {
        ratio: Some(0.672),
        ratio_of: RatioOf::Rate,
        void: false,
        version: "0.1.0".to_owned(),
        config,
        subject: summary(810_000.0),
        control: Some(summary(1_205_000.0)),
        rounds: vec![round(true), round(false)],
        machine: Machine {
            cores: 2,
            processor: "A <fast> & \"new\" one".to_owned(),
            kernel: "6.1".to_owned(),
            file_system: "/dev/vda, ext4".to_owned(),
        },
    }
}

/// The names of all elements, after a check that each that is opened is closed, in order.
fn elements(page: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut open: Vec<String> = Vec::new();
    let mut rest = page;
    while let Some((before, behind)) = rest.split_once('<') {
        assert!(!before.contains('>'), "a stray '>' in {before:?}");
        let (tag, after) = behind.split_once('>').expect("a tag ends");
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "closed in order");
            continue;
        }
        let name = tag.split([' ', '\n', '/']).next().unwrap().to_owned();
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
        if !(tag.ends_with('/') || ["!DOCTYPE", "meta"].contains(&name.as_str())) {
            open.push(name.clone());
        }
        names.push(name);
        if names.last().is_some_and(|name| name == "style") {
            let (_, after) = rest.split_once("</style").unwrap();
            open.pop();
            rest = after.strip_prefix('>').unwrap();
        }
    }
    assert_eq!(open, Vec::<String>::new(), "all is closed");
    names
}

#[test]
fn the_page_of_a_run_is_well_formed_and_needs_nothing_from_elsewhere() {
    let mut earlier = run();
    earlier.subject = summary(405_000.0);
    for page in [html(&run(), None), html(&run(), Some(&earlier))] {
        let names = elements(&page);
        assert_eq!(names.iter().filter(|name| *name == "svg").count(), 3);
        assert!(!page.contains("{{") && !page.contains("NaN"), "{page}");
        for elsewhere in ["http:", "https:", "<script", "<link", "url("] {
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
    }
    let compared = html(&run(), Some(&earlier));
    assert!(compared.contains("broker, earlier") && compared.contains("messages/s +100.0 %"));
}

#[test]
fn what_comes_from_outside_is_text() {
    let mut run = run();
    run.config.server = Some("<script>alert('x')</script>&{{rate}}".to_owned());
    let page = html(&run, None);
    elements(&page);
    assert!(!page.contains("<script"));
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;{{rate}}"));
    assert!(page.contains("A &lt;fast&gt; &amp; &quot;new&quot; one"));
}

#[test]
fn a_run_without_answers_or_without_a_valid_round_has_a_page_too() {
    let mut run = run();
    run.void = true;
    run.control = None;
    run.ratio = None;
    run.subject.series.clear();
    run.subject.distribution.clear();
    let page = html(&run, None);
    elements(&page);
    assert!(page.contains("No round was valid") && !page.contains("NaN"));
}

#[test]
fn the_page_is_as_it_was() {
    let page = html(&run(), None);
    if std::env::var_os("GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bench/report/golden.html");
        std::fs::write(path, &page).unwrap();
    }
    assert_eq!(page, GOLDEN, "GOLDEN=1 writes it anew");
}

#[test]
fn a_run_is_one_object_with_its_ratio_on_top_and_is_read_back_from_it() {
    let value = serde_json::to_value(run()).unwrap();
    assert_eq!(value["ratio"], 0.672);
    assert_eq!(value["ratio_of"], "rate");
    assert_eq!(value["config"]["what"], "send");
    assert_eq!(value["config"]["duration"], "2s");
    assert_eq!(value["subject"]["latency_us"]["p999"], 5_000);
    assert_eq!(value["subject"]["series"].as_array().unwrap().len(), 5);
    assert_eq!(value["rounds"][0]["void"], true);
    let back: Run = serde_json::from_value(value).unwrap();
    assert_eq!(html(&back, None), html(&run(), None));
}

#[test]
fn two_runs_say_in_what_they_differ_unless_it_is_their_length() {
    let mut other = run();
    other.config.rounds = 9;
    assert_eq!(run().differs_from(&other), Vec::<String>::new());
    other.config.batch = 10;
    other.machine.cores += 1;
    assert_eq!(run().differs_from(&other), ["batch", "cores"]);
    let page = html(&run(), Some(&other));
    assert!(
        page.contains("The earlier run was another one; it differs in: batch, cores</p>"),
        "{page}"
    );
    assert!(!html(&run(), Some(&run())).contains("another one"));
}

#[test]
fn beside_a_run_without_an_answer_there_is_no_change() {
    let mut other = run();
    assert_eq!(run().change_from(&other), Some(0.0));
    other.subject.messages_per_second = 0.0;
    assert_eq!(run().change_from(&other), None);
    assert!(!html(&run(), Some(&other)).contains("inf"));
}
