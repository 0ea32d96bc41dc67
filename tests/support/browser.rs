//! A headless Chromium, spoken to by its debugging protocol over a pipe.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::eventually::eventually_some;

const PATIENCE: Duration = Duration::from_secs(30);

/// What a person can act on.
const CONTROLS: &str = "a[href], button, input:not([type=hidden]), select, summary, [tabindex='0']";

/// One tab of a browser of its own; gone when it is dropped.
pub struct Browser {
    _child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    calls: u64,
    session: Option<String>,
    _profile: TempDir,
}

impl Browser {
    pub async fn start() -> Self {
        let profile = TempDir::with_prefix("outboxd-browser-").unwrap();
        // The protocol is spoken on the descriptors 3 and 4.
        let script = "exec chromium --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run \
             --remote-debugging-pipe --user-data-dir=\"$1\" about:blank 3<&0 4>&1 </dev/null >&2 2>\"$1/log\"";
        let mut child = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut browser = Self { _child: child, to, from, calls: 0, session: None, _profile: profile };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach).await;
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        browser.call("Page.enable", json!({})).await;
        browser
    }

    /// Asks, and returns the answer; what happens meanwhile is of no interest.
    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).await.expect("Chromium listens: `make setup` installs it");
        self.to.flush().await.unwrap();
        let answer = async {
            loop {
                let mut bytes = Vec::new();
                let count = self.from.read_until(0, &mut bytes).await.unwrap();
                assert!(count > 0, "Chromium has ended: `make setup` installs it");
                bytes.pop();
                let mut answer: Value = serde_json::from_slice(&bytes).unwrap();
                if answer["id"] == self.calls {
                    assert!(answer["error"].is_null(), "{method}: {answer}");
                    return answer["result"].take();
                }
            }
        };
        tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(|_| panic!("{method}: no answer"))
    }

    /// The value of an expression of JavaScript.
    pub async fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.call("Runtime.evaluate", params).await;
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    /// Opens a page, and waits until it is loaded.
    pub async fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url })).await;
        self.loaded().await;
    }

    async fn loaded(&mut self) {
        let ready = "document.readyState === 'complete' && location.href !== 'about:blank' && !window.left";
        let this = std::cell::RefCell::new(self);
        #[allow(clippy::await_holding_refcell_ref, reason = "one task asks")]
        let is_ready = async || this.borrow_mut().evaluate(ready).await.as_bool().filter(|ready| *ready);
        eventually_some("the page is loaded", PATIENCE, is_ready).await;
    }

    /// Presses what the selector names, and waits for the page that it leads to.
    pub async fn follow(&mut self, selector: &str) {
        let press = format!("window.left = true; document.querySelector({}).click()", json!(selector));
        self.evaluate(&press).await;
        self.loaded().await;
    }

    pub async fn text(&mut self) -> String {
        self.evaluate("document.body.innerText").await.as_str().unwrap().to_owned()
    }

    /// Those of pages, that is.
    pub async fn run_no_scripts(&mut self) {
        self.call("Emulation.setScriptExecutionDisabled", json!({ "value": true })).await;
    }

    pub async fn resize(&mut self, width: u32, height: u32) {
        let params = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", params).await;
    }

    pub async fn colour_scheme(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    /// Keeps a picture of the page, as `target/screenshots/NAME.png`.
    pub async fn screenshot(&mut self, name: &str) {
        let answer = self.call("Page.captureScreenshot", json!({ "format": "png" })).await;
        let picture = STANDARD.decode(answer["data"].as_str().unwrap()).unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/screenshots");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), picture).unwrap();
    }

    /// Controls of the page that the key Tab does not come to.
    pub async fn out_of_reach(&mut self) -> Vec<String> {
        let number = format!(
            "[...document.querySelectorAll({})].filter(e => e.checkVisibility()).map((e, n) => e.dataset.n = n).length",
            json!(CONTROLS)
        );
        let count = self.evaluate(&number).await.as_u64().unwrap();
        self.evaluate("document.activeElement.blur()").await;
        for _ in 0..count + 5 {
            for kind in ["rawKeyDown", "keyUp"] {
                let key = json!({ "type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9 });
                self.call("Input.dispatchKeyEvent", key).await;
            }
            self.evaluate("delete document.activeElement.dataset.n").await;
        }
        let left = self.evaluate("[...document.querySelectorAll('[data-n]')].map(e => e.outerHTML)").await;
        left.as_array().unwrap().iter().map(ToString::to_string).collect()
    }

    /// Controls that a screen reader has no name for.
    pub async fn without_a_name(&mut self) -> Vec<String> {
        let tree = self.call("Accessibility.getFullAXTree", json!({})).await;
        let roles = ["link", "button", "textbox", "combobox", "region", "image", "DisclosureTriangle"];
        let nodes = tree["nodes"].as_array().unwrap().iter();
        let nameless = nodes.filter(|node| {
            let role = node["role"]["value"].as_str().unwrap_or_default();
            node["ignored"] != true
                && roles.contains(&role)
                && node["name"]["value"].as_str().unwrap_or_default().trim().is_empty()
        });
        nameless.map(ToString::to_string).collect()
    }
}
