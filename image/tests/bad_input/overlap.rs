//! Two that want the same place: a file of the root, or a release's folder.

use std::fs;

use super::interrupted::{Yard, names, put};

#[test]
fn a_component_that_overwrites_a_file_of_the_root_is_refused() {
    let yard = Yard::new();
    let recipe = yard.bench.path("r.toml");
    let plain = fs::read_to_string(&recipe).unwrap();
    let with = |file: &str| {
        let component = "[component.extra]\nversion = \"1.0.0\"\noverlays = [\"extra\"]\n";
        fs::write(&recipe, format!("{plain}{component}")).unwrap();
        let _ = fs::remove_dir_all(yard.bench.path("extra"));
        put(&yard.bench.path("extra").join(file), "of the component\n");
        yard.bench.must("lock");
    };
    with("usr/bin/true");
    let (code, text) = yard.bench.run(&yard.tool("out"));
    assert_eq!(code, 3, "{text}");
    assert!(
        text.contains("component extra: /usr/bin/true: overwrites a file of the root"),
        "{text}"
    );
    assert!(text.contains("hint: give the file another path"), "{text}");
    assert!(names(&yard.bench.path("out")).is_empty());
    // Beside it there is room.
    with("usr/bin/true-too");
    yard.build("out");
    assert_eq!(names(&yard.bench.path("out")), ["2026.11.1"]);
}

#[test]
fn two_recipes_do_not_write_the_same_release() {
    let yard = Yard::new();
    yard.build("out");
    let first = yard.release("out");
    fs::copy(yard.bench.path("r.toml"), yard.bench.path("other.toml")).unwrap();
    fs::copy(yard.bench.path("r.lock"), yard.bench.path("other.lock")).unwrap();
    let (code, text) = yard.bench.run(&yard.tool_for("other.toml", "out"));
    assert_eq!(code, 3, "{text}");
    assert!(
        text.contains("out/2026.11.1: is a release of r.toml, this one is of other.toml"),
        "{text}"
    );
    assert_eq!(yard.release("out"), first);
}
