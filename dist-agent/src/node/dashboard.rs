//! The page at `/`: plain HTML, made here as a whole, that loads itself again.

use std::fmt::Write as _;

use super::overview::Overview;

/// How often the page loads itself again.
const REFRESH_SECONDS: u32 = 2;

/// The most rows of one table; a line says how many more there are.
const MAX_ROWS: usize = 200;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;\
color:#1a1a1a;background:#fff}h1{font-size:1.4rem}h2{font-size:1.1rem;margin:1.8rem 0 .4rem}table{border-collapse:\
collapse;width:100%}th,td{text-align:left;padding:.25rem .8rem .25rem 0;border-bottom:1px solid #ddd;\
vertical-align:top}th{font-weight:600;color:#555}td.n{font-variant-numeric:tabular-nums}.bad{color:#b00020;\
font-weight:600}.note{color:#666}@media(prefers-color-scheme:dark){body{color:#e4e4e4;background:#161616}\
th,td{border-color:#333}th,.note{color:#aaa}.bad{color:#ff6b6b}}";

/// The page of a node that serves.
pub(crate) fn render(overview: &Overview) -> String {
    let mut body = String::new();
    let leaderless = overview.groups.iter().filter(|group| group.leader.is_none()).count();
    let active = overview.nodes.iter().filter(|node| node.state == "active").count();
    let agents: u64 = overview.quotas.iter().map(|quota| quota.count).sum();
    let summary = format!(
        "{active} of {} nodes active, {} groups, {leaderless} without a leader, {agents} agents",
        overview.nodes.len(),
        overview.groups.len()
    );
    paragraph(&mut body, if leaderless > 0 || active < overview.nodes.len() { "bad" } else { "" }, &summary);
    for gap in &overview.gaps {
        paragraph(&mut body, "bad", gap);
    }
    let leads = |name: &str| overview.groups.iter().filter(|group| group.leader.as_deref() == Some(name)).count();
    let holds = |name: &str| overview.groups.iter().filter(|group| group.replicas.iter().any(|n| n == name)).count();
    let nodes = overview.nodes.iter().map(|node| {
        let counts = [holds(&node.name).to_string(), leads(&node.name).to_string()];
        let [replicas, leaders] = counts;
        let text = [&node.name, node.state, &node.zone, &node.address, &node.http, &replicas, &leaders];
        Row { bad: node.state != "active", cells: text.map(str::to_owned).to_vec() }
    });
    table(&mut body, "Nodes", &["name", "state", "zone", "address", "http", "replicas", "leads"], nodes);
    let groups = overview.groups.iter().map(|group| Row {
        bad: group.leader.is_none(),
        cells: vec![
            group.name.clone(),
            group.state.to_owned(),
            group.leader.clone().unwrap_or_else(|| "none".to_owned()),
            group.replicas.join(", "),
            group.term.to_string(),
        ],
    });
    table(&mut body, "Groups", &["name", "state", "leader", "replicas", "term"], groups);
    let number = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
    let shards = overview.shards.iter().map(|(keyspace, shard)| Row {
        bad: shard.keys.is_none(),
        cells: vec![
            keyspace.clone(),
            shard.group.clone(),
            format!("{:08x} to {:08x}", shard.lower, shard.upper),
            number(shard.keys),
            number(shard.bytes),
            shard.phase.to_owned(),
        ],
    });
    table(&mut body, "Shards", &["keyspace", "group", "hashes", "keys", "bytes", "phase"], shards);
    let quotas = overview.quotas.iter().map(|quota| Row {
        bad: false,
        cells: vec![
            quota.quota.clone(),
            quota.limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string()),
            quota.count.to_string(),
        ],
    });
    table(&mut body, "Agents by quota", &["quota", "limit", "agents"], quotas);
    document(&format!("Cluster, as {} sees it", overview.node), &body)
}

/// The page of a node that does not serve.
pub(crate) fn starting() -> String {
    document("This node does not serve", "<p class=\"bad\">It is joining its cluster, or stopping.</p>")
}

struct Row {
    bad: bool,
    cells: Vec<String>,
}

fn document(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta http-equiv=\"refresh\" content=\"{REFRESH_SECONDS}\"><title>{title}</title><style>{STYLE}</style>\
         </head><body><h1>{title}</h1>{body}</body></html>\n"
    )
}

// Writing to a string cannot fail, here and below.
fn paragraph(body: &mut String, class: &str, text: &str) {
    let _ = write!(body, "<p class=\"{class}\">{}</p>", escape(text));
}

fn table(body: &mut String, title: &str, heads: &[&str], rows: impl ExactSizeIterator<Item = Row>) {
    let count = rows.len();
    let _ = write!(body, "<h2>{}</h2><table><thead><tr>", escape(title));
    for head in heads {
        let _ = write!(body, "<th>{}</th>", escape(head));
    }
    body.push_str("</tr></thead><tbody>");
    for row in rows.take(MAX_ROWS) {
        body.push_str(if row.bad { "<tr class=\"bad\">" } else { "<tr>" });
        for cell in &row.cells {
            let class = if cell.parse::<u64>().is_ok() { " class=\"n\"" } else { "" };
            let _ = write!(body, "<td{class}>{}</td>", escape(cell));
        }
        body.push_str("</tr>");
    }
    body.push_str("</tbody></table>");
    if count == 0 {
        paragraph(body, "note", "none");
    } else if count > MAX_ROWS {
        paragraph(body, "note", &format!("and {} more", count - MAX_ROWS));
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::overview::{GroupRow, NodeRow, QuotaRow, ShardRow};

    fn overview() -> Overview {
        let node = |name: &str, state| NodeRow {
            name: name.into(),
            id: "1".into(),
            zone: "<z&1>".into(),
            state,
            address: "127.0.0.1:1".into(),
            http: "127.0.0.1:2".into(),
            left: None,
        };
        let group = |name: &str, leader: Option<&str>| GroupRow {
            name: name.into(),
            leader: leader.map(str::to_owned),
            replicas: vec!["n1".into(), "n2".into()],
            term: 3,
            state: if leader.is_some() { "active" } else { "leaderless" },
        };
        let shard = ShardRow {
            group: "k/1".into(),
            lower: 0,
            upper: u32::MAX,
            keys: None,
            bytes: None,
            load: None,
            phase: "unknown",
        };
        Overview {
            node: "n1".into(),
            nodes: vec![node("n1", "active"), node("n2", "unreachable")],
            groups: vec![group("cluster", Some("n1")), group("k/1", None)],
            shards: vec![("demo".into(), shard)],
            quotas: vec![QuotaRow { quota: "acme".into(), limit: None, count: 7 }],
            gaps: vec!["what <b>".into()],
        }
    }

    #[test]
    fn the_page_shows_everything_and_lets_no_markup_in() {
        let page = render(&overview());
        for text in ["n1", "n2", "unreachable", "k/1", "demo", "acme", "unlimited", "1 of 2 nodes active", "7 agents"] {
            assert!(page.contains(text), "{text}");
        }
        assert!(page.contains("&lt;z&amp;1&gt;") && !page.contains("<z&1>"));
        assert!(page.contains("what &lt;b&gt;"));
        assert!(page.contains("http-equiv=\"refresh\""));
        assert!(!page.contains("http://") && !page.contains("https://"), "no external assets");
    }

    #[test]
    fn long_tables_are_cut() {
        let mut overview = overview();
        let row = overview.quotas[0].clone();
        overview.quotas = vec![row; MAX_ROWS + 7];
        assert!(render(&overview).contains("and 7 more"));
    }
}
