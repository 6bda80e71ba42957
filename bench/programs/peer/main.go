// Command peer replicates one database with Litestream v0.5. With "restore
// REPLICA TARGET" it restores and prints the most memory that it ever held, in
// bytes.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"log/slog"
	"os"

	"example.com/litestream/bench/programs/memory"
	"github.com/benbjohnson/litestream"
	"github.com/benbjohnson/litestream/file"
	_ "modernc.org/sqlite"
)

func main() {
	ctx := context.Background()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	if len(os.Args) == 4 && os.Args[1] == "restore" {
		opt := litestream.NewRestoreOptions()
		opt.OutputPath = os.Args[3]
		check(litestream.NewReplicaWithClient(nil, file.NewReplicaClient(os.Args[2])).Restore(ctx, opt))
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
	client := file.NewReplicaClient(os.Args[2])
	db.Replica = litestream.NewReplicaWithClient(db, client)
	client.Replica = db.Replica
	check(db.Open())
	check(app.Close())
	check(db.Close(ctx))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
