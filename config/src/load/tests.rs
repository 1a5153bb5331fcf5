use std::fs;

use super::*;

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    directory
}

const WEB: &str = "\
services:
  - name: web
    address: 203.0.113.10
    ports: [{port: 443}]
    forwarding: ipip
    backends:
      - {name: web-1, address: 10.0.1.11}
      - {address: \"2001:db8::12\", weight: 0, state: draining}
";

#[test]
fn loads_a_service() {
    let directory = directory(&[("web.yaml", WEB)]);
    let state = Loader::new(directory.path()).load().unwrap();
    let service = &state.services["web"];
    assert_eq!(service.backends.len(), 2);
    assert_eq!(service.backends[1].name, "2001:db8::12");
    assert_eq!(service.ports[0].name, "tcp-443");
    assert_eq!(
        service.source,
        model::Source::File {
            path: Arc::new(directory.path().join("web.yaml")),
            line: 2,
            column: 5
        }
    );
}
