// Command ours replicates one database with this library. With "restore
// REPLICA TARGET" it restores and prints the most memory that it ever held, in
// bytes.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"log"
	"os"

	"example.com/litestream"
	"example.com/litestream/bench/programs/memory"
	"example.com/litestream/fileclient"
	_ "modernc.org/sqlite"
)

func main() {
	ctx := context.Background()
	litestream.LogWriter = io.Discard
	if len(os.Args) == 4 && os.Args[1] == "restore" {
		client := fileclient.NewFileReplicaClient(os.Args[2])
		_, err := litestream.RestoreLatest(ctx, client, os.Args[3], litestream.NewRestoreOptions())
		check(err)
		peak, err := memory.Peak()
		check(err)
		fmt.Println(peak)
		return
	}

	app, err := sql.Open("sqlite", "file:"+os.Args[1]+"?_pragma=journal_mode(WAL)")
	check(err)
	_, err = app.Exec("CREATE TABLE IF NOT EXISTS t (x); INSERT INTO t VALUES (1)")
	check(err)
	db := litestream.NewDB(os.Args[1])
	db.Replicas = append(db.Replicas, litestream.NewReplica(db, "", fileclient.NewFileReplicaClient(os.Args[2])))
	check(db.Open())
	check(app.Close())
	check(db.Close())
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
