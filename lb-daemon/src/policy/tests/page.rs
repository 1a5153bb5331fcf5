//! The rules of docs/policy.md do what stands below them.

use std::{fs, path::Path};

use crate::policy::cli::allows;

#[test]
fn the_ten_rules() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policy.md");
    let page = fs::read_to_string(path).expect("the page");
    let (_, part) = page.split_once("## Ten rules").expect("the part");
    let part = part.split("\n## ").next().expect("its end");
    let mut rules = String::new();
    let (mut seen, mut asked, mut block) = (0, 0, None);
    for line in part.lines() {
        let text = line.trim();
        match (block, text) {
            (None, "```yaml") => {
                rules.clear();
                seen += 1;
                block = Some("yaml");
            }
            (None, "```text") => block = Some("text"),
            (Some(_), "```") => block = None,
            (Some("yaml"), _) => {
                rules.push_str(line);
                rules.push('\n');
            }
            (Some(_), _) => {
                let words: Vec<&str> = text.split_whitespace().collect();
                let [verdict, from, "->", to, port] = words[..] else { panic!("{line}") };
                let allowed = allows(&rules, from, to, port).expect(line);
                assert_eq!(allowed, verdict == "allowed", "{line}\n{rules}");
                asked += 1;
            }
            (None, _) => {}
        }
    }
    assert_eq!(seen, 10);
    assert!(asked >= 25, "{asked}");
}
